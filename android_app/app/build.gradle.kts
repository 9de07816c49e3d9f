plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "org.mobileclip.app"
    compileSdk = 37
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    defaultConfig {
        applicationId = "org.mobileclip.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1"
        ndk.abiFilters += setOf("arm64-v8a", "x86_64")
    }
    buildFeatures { compose = true }
    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }
    packaging.jniLibs {
        useLegacyPackaging = false // libraries lie in the APK uncompressed and aligned to pages of 16 KB
        pickFirsts += "**/libc++_shared.so"
    }
    testOptions.unitTests.all {
        it.systemProperty("bundle", providers.gradleProperty("bundle").getOrElse("mobileclip_nano-fp32"))
        it.systemProperty("pictures", providers.gradleProperty("pictures").getOrElse("pictures"))
        it.environment("ORT_DISABLE_TELEMETRY", "1")
    }
}

dependencies {
    implementation(project(":phone"))
    implementation(platform(libs.compose.bom))
    implementation(libs.compose.foundation)
    implementation(libs.compose.material3)
    implementation(libs.activity.compose)
    implementation(libs.camera.camera2)
    implementation(libs.camera.view)
    implementation(libs.coroutines.android)
    testImplementation(libs.onnxruntime.jvm) // the same classes, with a computer's library
    testImplementation(libs.kotlin.test.junit)
    testImplementation(libs.junit)
}
