plugins { alias(libs.plugins.android.library) }

android {
    namespace = "org.mobileclip.phone"
    compileSdk = 37
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    defaultConfig.minSdk = 26
}

dependencies {
    api(project(":core"))
    api(project(":runtime-onnx"))
    api(project(":runtime-executorch"))
    api(libs.onnxruntime.android)
}
